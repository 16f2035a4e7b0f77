#!/usr/bin/env bash
# Builds build/mlad-VERSION-linux-ARCH.tar.gz, which runs wherever it is unpacked: bin/mlad, in lib/
# the shared libraries it needs other than the C library, the demo model, and all licences. Where
# nvcc is, also libmla: lib/libmla.so, lib/libmla.a, include/mla.h, python/mla.py.
#
# It needs the C library of the system it is built on or a newer one; the last line tells. The same
# sources and packages give the same archive. Debian and Ubuntu only: dpkg knows the libraries.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh
toolkit=$(make -s cuda-toolkit) # empty where nvcc is not
make -s -j"$(nproc)" build/dist/mlad ${toolkit:+libmla}

name=mlad-$(cat VERSION)-linux-$(uname -m)
stage=build/dist/$name
archive=build/$name.tar.gz
# The parts of the C library; the loader finds them on the target.
glibc='linux-vdso|ld-linux.*|libc|libm|libpthread|libdl|librt|libresolv'

rm -rf "$stage"
mkdir -p "$stage"/{bin,lib,share/mlad/model,licenses}
strip --strip-debug -o "$stage/bin/mlad" build/dist/mlad
cp LICENSE README.md "$stage"
cp -r model/demo "$stage/share/mlad/model/"
cp -r config/mlad.conf config/deploy "$stage/share/mlad/"

if [ "$toolkit" ]; then
    mkdir "$stage"/{include,python}
    cp kernels/mla.h "$stage/include/"
    cp kernels/python/mla.py "$stage/python/"
    for library in libmla.so libmla.a; do
        strip --strip-debug -o "$stage/lib/$library" "build/$library"
    done
    # The CUDA runtime is linked in.
    [ ! -e "$toolkit/EULA.txt" ] || cp "$toolkit/EULA.txt" "$stage/licenses/cuda"
fi

# Licences of what goes into lib/: the package's own file, and the common texts it points to.
add_licence() {
    local package=$1 text
    cp "/usr/share/doc/$package/copyright" "$stage/licenses/$package"
    grep -o '/usr/share/common-licenses/[A-Za-z0-9.-]*[A-Za-z0-9]' "$stage/licenses/$package" |
        while read -r text; do
            cp -L "$text" "$stage/licenses/${text##*/}"
        done || true
    dpkg-query -W -f "\${Package} \${Version}, source package \${source:Package}\n" "$package" \
        >>"$stage/licenses/libraries"
}

# libcurl is loaded only when traces are sent, so ldd does not list it.
for soname in libcurl-gnutls.so.4 libcurl.so.4; do
    curl=$(ldconfig -p | awk -v soname=$soname '$1 == soname { print $NF; exit }')
    [ -z "$curl" ] || break
done

# ldd prints `NAME => PATH (ADDRESS)`.
while read -r library _ path _; do
    [[ $library =~ ^(/.*/)?($glibc)(\.so|$) ]] && continue
    cp -L "$path" "$stage/lib/$library"
    chmod 644 "$stage/lib/$library"
    # Packages name their files with or without the /usr of merged systems.
    package=$(dpkg -S "$(realpath "$path")" 2>/dev/null || dpkg -S "$path" || dpkg -S "/usr$path")
    add_licence "${package%%:*}"
done < <(ldd build/dist/mlad; ldd "$curl"; echo "${curl##*/} => $curl")
sort -u -o "$stage/licenses/libraries" "$stage/licenses/libraries"

# Everything must now come from lib/ or the C library, and the program must start with them alone.
strays=$({ ldd "$stage/bin/mlad"; LD_LIBRARY_PATH=$PWD/$stage/lib ldd "$stage/lib/${curl##*/}"; } |
    grep -vE "^\s*(/.*/)?($glibc)(\.so| )|=> $PWD/$stage/" || true)
if [ -n "$strays" ]; then
    printf 'dist: found outside the archive:\n%s\n' "$strays" >&2
    exit 1
fi
env -i "$stage/bin/mlad" --version >/dev/null

needed=$(find "$stage/bin" "$stage/lib" -type f -exec readelf -V {} + |
    grep -oE 'GLIBC_[0-9.]+' | sort -Vu | tail -1)
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
tar -C build/dist --sort=name --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
    --mtime="@$epoch" --format=gnu -cf - "$name" | gzip -9n >"$archive"
echo "$archive: $(du -h "$archive" | cut -f1), needs glibc ${needed#GLIBC_} or newer"

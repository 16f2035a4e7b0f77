/* model.safetensors files of any content: opened or refused; what is opened can be read. */
#include "base/memory.h"
#include "model/safetensors.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"a", "b", "model.norm.weight"};
    struct error err = {""};

    fuzz_write("model.safetensors", data, size);
    struct safetensors *st = safetensors_open(fuzz_folder(), &err);
    if (!st) {
        ASSERT(err.message[0]);
        return 0;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct tensor info;
        if (safetensors_info(st, names[i], &info, &err))
            continue;
        ASSERT(tensor_bytes(&info) <= size);
        void *bytes = mem_alloc(tensor_bytes(&info));
        safetensors_read(st, names[i], bytes, &err);
        free(bytes);
    }
    safetensors_close(st);
    return 0;
}

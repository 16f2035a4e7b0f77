#include "base/utf8.h"

static bool is_continuation(unsigned char byte)
{
    return (byte & 0xC0) == 0x80;
}

int utf8_decode(const char *text, size_t len, uint32_t *codepoint)
{
    const unsigned char *s = (const unsigned char *)text;
    uint32_t c, low = 0x80, high = 0xBF; /* allowed range of the second byte */
    int size;

    if (len == 0)
        return -1;
    if (s[0] < 0x80) {
        size = 1, c = s[0];
    } else if (s[0] >= 0xC2 && s[0] <= 0xDF) {
        size = 2, c = s[0] & 0x1F;
    } else if (s[0] >= 0xE0 && s[0] <= 0xEF) {
        size = 3, c = s[0] & 0x0F;
        low = s[0] == 0xE0 ? 0xA0 : low;
        high = s[0] == 0xED ? 0x9F : high;
    } else if (s[0] >= 0xF0 && s[0] <= 0xF4) {
        size = 4, c = s[0] & 0x07;
        low = s[0] == 0xF0 ? 0x90 : low;
        high = s[0] == 0xF4 ? 0x8F : high;
    } else {
        return 0;
    }
    for (int i = 1; i < size; i++) {
        if ((size_t)i >= len)
            return -1;
        if (!is_continuation(s[i]) || (i == 1 && (s[1] < low || s[1] > high)))
            return 0;
        c = c << 6 | (s[i] & 0x3F);
    }
    if (codepoint)
        *codepoint = c;
    return size;
}

int utf8_encode(uint32_t c, char out[4])
{
    if (c < 0x80) {
        out[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (char)(0xC0 | c >> 6);
        out[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12);
        out[1] = (char)(0x80 | (c >> 6 & 0x3F));
        out[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 0x3F));
    out[2] = (char)(0x80 | (c >> 6 & 0x3F));
    out[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

bool utf8_valid(const char *text, size_t len)
{
    for (size_t at = 0; at < len;) {
        int size = utf8_decode(text + at, len - at, NULL);
        if (size <= 0)
            return false;
        at += (size_t)size;
    }
    return true;
}

size_t utf8_complete_prefix(const char *text, size_t len)
{
    /* An unfinished character is at most 3 bytes long: look for its lead byte from the end. */
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        unsigned char byte = (unsigned char)text[len - back];
        if (is_continuation(byte))
            continue;
        return utf8_decode(text + len - back, back, NULL) < 0 ? len - back : len;
    }
    return len;
}

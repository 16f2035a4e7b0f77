#include "server/page.h"

/* The assembler puts the file between two symbols; paths are from the repository's root. */
#define EMBED(symbol, path)                                                                        \
    __asm__(".pushsection .rodata\n" #symbol "_start:\n.incbin \"" path "\"\n" #symbol             \
            "_end:\n.byte 0\n.popsection\n");                                                      \
    extern const char symbol##_start[], symbol##_end[]

EMBED(mlad_page_chat, "server/page/chat.html");
EMBED(mlad_page_openapi, "server/page/openapi.json");

const char *page_chat(size_t *len)
{
    *len = (size_t)(mlad_page_chat_end - mlad_page_chat_start);
    return mlad_page_chat_start;
}

const char *page_openapi(size_t *len)
{
    *len = (size_t)(mlad_page_openapi_end - mlad_page_openapi_start);
    return mlad_page_openapi_start;
}

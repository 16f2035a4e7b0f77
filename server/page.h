/* Files that are part of the binary. */
#pragma once

#include <stddef.h>

/* The chat page that GET / shows (server/page/chat.html). */
const char *page_chat(size_t *len);

/* The API's description that GET /openapi.json shows (server/page/openapi.json). */
const char *page_openapi(size_t *len);

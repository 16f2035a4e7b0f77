/* Files that are part of the binary. */
#pragma once

#include <stddef.h>

/* The chat page that GET / shows (server/page/chat.html). */
const char *page_chat(size_t *len);

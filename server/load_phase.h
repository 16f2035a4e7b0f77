/* What the time of loading a model goes to. The tokenizer is read beside the rest. */
#pragma once

enum load_phase {
    LOAD_BACKEND, /* opening the device */
    LOAD_WEIGHTS,
    LOAD_MEMORY, /* for steps */
    LOAD_CACHE,  /* and graphs */
    LOAD_TOKENIZER,
    LOAD_TOTAL,
    N_LOAD_PHASES,
};

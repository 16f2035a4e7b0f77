/* config.json files of any content: loaded or refused with a sentence. */
#include "model/config.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model_config config;
    struct error err = {""};

    fuzz_write("config.json", data, size);
    if (model_config_load(&config, fuzz_folder(), &err))
        ASSERT(err.message[0]);
    else
        ASSERT(config.layers > 0 && config.vocab_size > 0 && config.mla.heads > 0 &&
               config.layers + config.mtp_declared <= MODEL_MAX_LAYERS);
    return 0;
}

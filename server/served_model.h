/* What clients call the model. */
#pragma once

#include "config/options.h"

/* As told, or the name of the folder `dir`. The caller frees it. */
char *served_model_name(const struct options *options, const char *dir);

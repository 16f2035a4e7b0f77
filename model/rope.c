/* The arithmetic follows transformers (modeling_rope_utils.py) to the precision of each step: the
 * bounds of the ramp in double, as Python's floats, the frequencies in float, as torch's tensors.
 */
#include "model/rope.h"

#include "base/panic.h"

#include <math.h>

static double mscale_of(double factor, double mscale)
{
    return factor <= 1 ? 1.0 : 0.1 * mscale * log(factor) + 1.0;
}

/* The dimension, not yet whole, whose frequency makes `rotations` turns in the original context. */
static double correction_dim(double rotations, double dim, double theta, double positions)
{
    return dim * log(positions / (rotations * 2 * M_PI)) / (2 * log(theta));
}

/* Without mscale or mscale_all_dim the magnitude is that of factor alone, whatever the other one
 * says: DeepSeek's own code reads the missing one as 1 or 0, transformers doesn't. */
static double magnitude_of(const struct yarn *yarn)
{
    if (yarn->attention_factor != 0)
        return yarn->attention_factor;
    if (yarn->mscale != 0 && yarn->mscale_all_dim != 0)
        return mscale_of(yarn->factor, yarn->mscale) /
               mscale_of(yarn->factor, yarn->mscale_all_dim);
    return mscale_of(yarn->factor, 1.0);
}

/* Slow frequencies are divided by `factor`, fast ones kept, with a linear ramp in between. */
static void apply_yarn(struct rope_config *rope, double theta, const struct yarn *yarn)
{
    double low = correction_dim(yarn->beta_fast, rope->dim, theta, yarn->original_positions);
    double high = correction_dim(yarn->beta_slow, rope->dim, theta, yarn->original_positions);

    low = fmax(yarn->truncate ? floor(low) : low, 0);
    high = fmin(yarn->truncate ? ceil(high) : high, rope->dim - 1);
    if (low == high)
        high += 0.001;
    for (int i = 0; i < rope->dim / 2; i++) {
        float period = powf((float)theta, (float)(2 * i) / (float)rope->dim);
        float ramp = fminf(fmaxf(((float)i - (float)low) / (float)(high - low), 0), 1);
        float keep = 1 - ramp;
        rope->inv_freq[i] = 1 / ((float)yarn->factor * period) * (1 - keep) + 1 / period * keep;
    }
    rope->magnitude = (float)magnitude_of(yarn);
}

void rope_frequencies(struct rope_config *rope, double theta, const struct yarn *yarn)
{
    ASSERT(rope->dim > 0 && rope->dim <= ROPE_MAX_DIM && rope->dim % 2 == 0 && theta > 1);
    if (yarn) {
        apply_yarn(rope, theta, yarn);
        return;
    }
    rope->magnitude = 1;
    for (int i = 0; i < rope->dim / 2; i++)
        rope->inv_freq[i] = 1 / powf((float)theta, (float)(2 * i) / (float)rope->dim);
}

void rope_scaled_frequencies(struct rope_config *rope, double theta, const float *factors,
                             double magnitude)
{
    rope->magnitude = (float)magnitude;
    for (int i = 0; i < rope->dim / 2; i++)
        rope->inv_freq[i] =
            1 / (factors[i] * powf((float)theta, (float)(2 * i) / (float)rope->dim));
}

double rope_softmax_factor(const struct yarn *yarn)
{
    double mscale =
        yarn && yarn->mscale_all_dim != 0 ? mscale_of(yarn->factor, yarn->mscale_all_dim) : 1.0;

    return mscale * mscale;
}

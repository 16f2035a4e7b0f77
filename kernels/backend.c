#include "kernels/backend.h"

int backend_upload(struct backend *be, struct tensor *dst, enum weight_use use,
                   const struct tensor *host, struct error *err)
{
    const struct backend_ops *op = be->ops;

    if (op->alloc_weight(be, dst, use, host->dtype, host->rank, host->shape, err))
        return -1;
    if (op->upload(be, dst, 0, host, err)) {
        op->release(be, dst);
        return -1;
    }
    return 0;
}

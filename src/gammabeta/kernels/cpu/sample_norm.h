// The sample norms' ops: see gammabeta/ops.py for the schemas.
#pragma once

#include "tensors.h"

namespace gammabeta {

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_norm_forward(Tensor x, int64_t sample_axes, int64_t channel_axes,
                                                               int64_t groups, MaybeTensor weight, MaybeTensor bias,
                                                               MaybeTensor residual, MaybeTensor mask, double eps,
                                                               Text activation, double slope, bool center);

std::tuple<Tensor, Tensor, Tensor, Tensor> sample_norm_backward(Tensor g_y, Tensor x, int64_t sample_axes,
                                                                int64_t channel_axes, int64_t groups,
                                                                MaybeTensor weight, MaybeTensor bias,
                                                                MaybeTensor residual, MaybeTensor mask, Tensor mean,
                                                                Tensor var, Tensor count, double eps, Text activation,
                                                                double slope, bool center);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> add_sample_norm_forward(Tensor x, Tensor residual,
                                                                           int64_t channel_axes, MaybeTensor weight,
                                                                           MaybeTensor bias, double eps, bool center);

std::tuple<Tensor, Tensor, Tensor> add_sample_norm_backward(Tensor g_y, Tensor g_total, Tensor total,
                                                            int64_t channel_axes, MaybeTensor weight, MaybeTensor bias,
                                                            Tensor mean, Tensor var, Tensor count, double eps,
                                                            bool center);

}  // namespace gammabeta

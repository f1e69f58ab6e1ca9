// The channel norms' ops: see gammabeta/ops.py for the schemas.
#pragma once

#include "tensors.h"

namespace gammabeta {

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_norm_forward(Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                                MaybeTensor residual, MaybeTensor mask, double eps,
                                                                Text activation, double slope);

Tensor channel_apply_forward(Tensor x, Tensor mean, Tensor var, MaybeTensor weight, MaybeTensor bias,
                             MaybeTensor residual, MaybeTensor mask, double eps, Text activation, double slope);

std::tuple<Tensor, Tensor, Tensor> channel_moments(Tensor x, MaybeTensor mask);

std::tuple<Tensor, Tensor, Tensor, Tensor> channel_norm_backward(Tensor g_y, Tensor x, MaybeTensor weight,
                                                                 MaybeTensor bias, MaybeTensor residual,
                                                                 MaybeTensor mask, Tensor mean, Tensor var,
                                                                 MaybeTensor count, double eps, Text activation,
                                                                 double slope);

std::tuple<Tensor, Tensor> channel_backward_reduce(Tensor g_y, Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                   MaybeTensor residual, MaybeTensor mask, Tensor mean, Tensor var,
                                                   double eps, Text activation, double slope);

std::tuple<Tensor, Tensor> channel_backward_apply(Tensor g_y, Tensor x, MaybeTensor weight, MaybeTensor bias,
                                                  MaybeTensor residual, MaybeTensor mask, Tensor mean, Tensor var,
                                                  Tensor sum_g, Tensor sum_g_xhat, Tensor count, double eps,
                                                  Text activation, double slope);

}  // namespace gammabeta

// The update of running statistics: see gammabeta/running_statistics.py for the schema and the rule.
#pragma once

#include "tensors.h"

namespace gammabeta {

void move_running_statistics(MaybeTensor running_mean, MaybeTensor running_var, MaybeTensor num_batches_tracked,
                             MaybeTensor skipped_counts, Tensor mean, Tensor var, MaybeTensor count,
                             std::optional<double> momentum);

}  // namespace gammabeta

#pragma once

#include <cstdint>

namespace dure {

// The k highest scores of each row of logits (n, experts), falling, ties to the lower id.
void route(const float* logits, int64_t n, int experts, int k, bool normalize, bool sigmoid, int32_t* ids, float* weights);

}  // namespace dure

#pragma once

#include <cstdint>

namespace dure {

struct Filter {
  double temperature;
  int64_t top_k;  // 0: off
  double top_p;   // 1: off
  double min_p;   // 0: off
};

double uniform(uint64_t seed, uint64_t position);  // [0, 1), a multiple of 2^-53
int32_t argmax(const float* logits, int64_t n);    // lowest id among equals; -1 if any is NaN
// -1 if any logit is NaN.
int32_t sample(const float* logits, int64_t n, const Filter& filter, double uniform);
double log_sum_exp(const float* logits, int64_t n);
void top_logprobs(const float* logits, int64_t n, int64_t count, int32_t* ids, float* logprobs);

}  // namespace dure

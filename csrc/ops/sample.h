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
// The id drawn; -1 if a logit is a NaN or infinitely high, or if none is finite.
int32_t sample(const float* logits, int64_t n, const Filter& filter, double uniform);
// … of each row (rows, n), into ids (rows).
void sample_rows(const float* logits, int64_t rows, int64_t n, const Filter* filters,
                 const double* uniforms, int32_t* ids, int threads);
double log_sum_exp(const float* logits, int64_t n);
void top_logprobs(const float* logits, int64_t n, int64_t count, int32_t* ids, float* logprobs);

}  // namespace dure

#pragma once

#include <cstdint>

namespace dure {

enum class GroupRule { none, max, top2, each };

// How experts are scored, chosen and weighed.
struct Router {
  int experts = 0, k = 0;
  bool sigmoid = false;         // of each logit, instead of the softmax over all
  const float* bias = nullptr;  // (experts), added to the scores for the choice alone
  GroupRule rule = GroupRule::none;
  // Of experts whose ids follow each other; how many of them may be chosen from.
  int groups = 1, kept = 1;
  bool normalize = false;         // the chosen scores to a sum of 1
  float scale = 1;                // times every weight
  const float* scales = nullptr;  // (experts), times each expert's own weight
};

// The k best of each row of logits (n, experts), falling by what they are chosen by, ties to the
// lower id.
void route(const float* logits, int64_t n, const Router& router, int32_t* ids, float* weights);

// Adds to uses (experts), of each row of scores (n, experts), 1 for its k best and less for others:
// exp(-d) of one whose score lies d * near standard deviations of the row below the k-th. A row
// with a score that is not finite adds nothing.
void count_near(const float* scores, int64_t n, int experts, int k, double near, double* uses);

}  // namespace dure

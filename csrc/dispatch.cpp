// Picks the instruction set once: the best that this processor has, or the one that DURE_ISA names.
#include <cstdlib>

#include "ops.h"

namespace dure {

std::vector<const Ops*> available_ops() {
  std::vector<const Ops*> found;
#ifdef DURE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
    found.push_back(&avx512_ops());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found.push_back(&avx2_ops());
#endif
  found.push_back(&portable_ops());
  return found;
}

const Ops& ops() {
  static const Ops& chosen = []() -> const Ops& {
    const auto all = available_ops();
    const char* wanted = std::getenv("DURE_ISA");
    if (!wanted || !*wanted) return *all.front();
    for (const Ops* o : all)
      if (std::string(wanted) == o->name) return *o;
    throw std::runtime_error(std::string("DURE_ISA=") + wanted + " is not an instruction set of this machine");
  }();
  return chosen;
}

}  // namespace dure

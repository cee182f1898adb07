// Picks the instruction set once: the best that this processor has, or the one that DURE_ISA names.
// CMake says by DURE_HAS_… which were compiled.
#include <cstdlib>

#ifdef DURE_HAS_AVX512
#include "isa/amx.h"
#endif
#ifdef DURE_HAS_NEON
#include "isa/arm_features.h"
#endif
#include "ops/ops.h"

namespace dure {

const Ops& portable_ops();
const Ops& avx2_ops();
const Ops& avxvnni_ops();
const Ops& avx512_ops();
const Ops& neon_ops();
const Ops& dotprod_ops();
const Ops& i8mm_ops();

namespace {

#ifdef DURE_HAS_AVX512
// AVX-512, with its tiles of more than eight tokens on the matrix unit.
const Ops& amx_ops() {
  static const Ops table = [] {
    Ops ops = avx512_ops();
    ops.name = "amx";
    return ops;
  }();
  return table;
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

#ifdef DURE_HAS_AVX2
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
#endif

}  // namespace

std::vector<const Ops*> available_ops() {
  std::vector<const Ops*> found;
#ifdef DURE_HAS_AVX512
  if (has_avx512()) {
    if (Amx::available()) found.push_back(&amx_ops());
    found.push_back(&avx512_ops());
  }
#endif
#ifdef DURE_HAS_AVXVNNI
  if (has_avx2() && __builtin_cpu_supports("avxvnni")) found.push_back(&avxvnni_ops());
#endif
#ifdef DURE_HAS_AVX2
  if (has_avx2()) found.push_back(&avx2_ops());
#endif
#ifdef DURE_HAS_I8MM
  if (arm_has_i8mm()) found.push_back(&i8mm_ops());
#endif
#ifdef DURE_HAS_DOTPROD
  if (arm_has_dotprod()) found.push_back(&dotprod_ops());
#endif
#ifdef DURE_HAS_NEON
  found.push_back(&neon_ops());
#endif
  found.push_back(&portable_ops());
  return found;
}

const Ops& ops() {
  static const Ops& chosen = []() -> const Ops& {
    const auto all = available_ops();
    const char* wanted = std::getenv("DURE_ISA");
    const Ops* found = nullptr;
    for (const Ops* o : all)
      if (!found && (!wanted || !*wanted || std::string(wanted) == o->name)) found = o;
    if (!found)
      throw std::runtime_error(std::string("DURE_ISA=") + wanted +
                               " is not an instruction set of this machine");
#ifdef DURE_HAS_AVX512
    Amx::use(found == &amx_ops());
#endif
    return *found;
  }();
  return chosen;
}

}  // namespace dure

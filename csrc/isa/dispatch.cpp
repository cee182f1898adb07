// Picks the instruction set once: the best that this processor has, or the one that DURE_ISA names.
#include <cstdlib>

#ifdef DURE_X86
#include "isa/amx.h"
#endif
#include "ops/ops.h"
#include "pack/quantize.h"

namespace dure {

#ifdef DURE_X86
namespace {
// AVX-512, with its tiles of more than four tokens on the matrix unit.
const Ops& amx_ops() {
  static const Ops table = [] {
    Ops ops = avx512_ops();
    ops.name = "amx";
    return ops;
  }();
  return table;
}
}  // namespace
#endif

std::vector<const Ops*> available_ops() {
  std::vector<const Ops*> found;
#ifdef DURE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni")) {
    if (amx::available()) found.push_back(&amx_ops());
    found.push_back(&avx512_ops());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
#ifdef DURE_AVXVNNI
    if (__builtin_cpu_supports("avxvnni")) found.push_back(&avxvnni_ops());
#endif
    found.push_back(&avx2_ops());
  }
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
#ifdef DURE_X86
    amx::in_use = found == &amx_ops();
#endif
    return *found;
  }();
  return chosen;
}

// No forward pass needs it, so it is no entry of the table.
bool quantize_blocks(Type type, const float* x, int64_t count, uint8_t* out, int threads) {
#ifdef DURE_X86
  const std::string isa = ops().name;
  if (isa == "amx" || isa == "avx512") return avx512::quantize_blocks(type, x, count, out, threads);
  if (isa != "portable") return avx2::quantize_blocks(type, x, count, out, threads);
#endif
  return portable::quantize_blocks(type, x, count, out, threads);
}

}  // namespace dure

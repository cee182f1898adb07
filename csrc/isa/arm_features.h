// What an ARM processor has beyond NEON, as the operating system tells it: no instruction that a
// program may use does.
#pragma once

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>

#include <cstddef>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace dure {

#if defined(__linux__)
// Bits of arch/arm64/include/uapi/asm/hwcap.h, which older headers lack.
inline bool arm_has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
inline bool arm_has_i8mm() { return arm_has_dotprod() && getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__APPLE__)
inline bool arm_says(const char* name) {
  int answer = 0;
  size_t size = sizeof answer;
  return sysctlbyname(name, &answer, &size, nullptr, 0) == 0 && answer != 0;
}
inline bool arm_has_dotprod() { return arm_says("hw.optional.arm.FEAT_DotProd"); }
inline bool arm_has_i8mm() { return arm_has_dotprod() && arm_says("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32) && defined(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE)
inline bool arm_has_dotprod() {
  return IsProcessorFeaturePresent(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE);
}
inline bool arm_has_i8mm() {
#ifdef PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
  return arm_has_dotprod() && IsProcessorFeaturePresent(PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE);
#else
  return false;
#endif
}
#else
inline bool arm_has_dotprod() { return false; }
inline bool arm_has_i8mm() { return false; }
#endif

}  // namespace dure

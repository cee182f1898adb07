// What an instruction set without a matrix unit says in its place; amx.h has one. The operations
// ask `exists` at compile time, so that nothing of it is left.
#pragma once

namespace dure {

struct NoMatrixUnit {
  static constexpr bool exists = false;
  static constexpr int kTokens = 0;
  struct Strip {};
  static constexpr bool in_use() { return false; }
};

}  // namespace dure

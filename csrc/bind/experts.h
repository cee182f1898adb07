// The experts of a layer as Python holds them: their shapes, and where each one's record lies.
#pragma once

#include <memory>
#include <vector>

#include "bind/matrix.h"

namespace dure {

// Page-aligned memory for records: one that comes and goes, as a cache takes and gives it back, or
// some that stay.
struct ExpertBuffer {
  size_t slots, record_bytes;
  std::shared_ptr<Buffer> memory;

  ExpertBuffer(size_t count, size_t bytes, bool stays = false) : slots(count), record_bytes(bytes) {
    require(count > 0 && bytes > 0 && bytes % 4096 == 0, "records of whole pages of 4,096 bytes");
    require(bytes <= (size_t{1} << 46) / count, "the records would take more than 64 TiB");
    memory = std::make_shared<Buffer>(bytes * count, stays || count > 1);
  }
  // Makes it a buffer of records of that size; what it holds is lost.
  void resize(size_t bytes) {
    const ExpertBuffer checked(slots, bytes);
    if (memory.use_count() == 1) memory->resize(slots * bytes);
    else memory = checked.memory;
    record_bytes = bytes;
  }
  uint8_t* at(size_t slot) const {
    require(slot < slots,
            "slot " + std::to_string(slot) + " is not one of " + std::to_string(slots));
    return memory->data + slot * record_bytes;
  }
};

class Experts {
 public:
  Experts(int count, int64_t hidden, int64_t intermediate, const std::string& gate,
          const std::string& up, const std::string& down, bool resident)
      : records_(checked_count(count)), owners_(static_cast<size_t>(count)) {
    set_.count = count;
    set_.hidden = hidden;
    set_.intermediate = intermediate;
    set_.gate = describe(gate, intermediate, hidden);
    set_.up = describe(up, intermediate, hidden);
    set_.down = describe(down, hidden, intermediate);
    set_.up_offset = set_.gate.bytes();
    set_.down_offset = set_.up_offset + set_.up.bytes();
    if (!resident) return;
    const ExpertBuffer all(static_cast<size_t>(count), record_bytes(), /*stays=*/true);
    for (int expert = 0; expert < count; ++expert) place(expert, all, static_cast<size_t>(expert));
  }
  const ExpertSet& shape() const { return set_; }
  size_t record_bytes() const { return round_up(set_.down_offset + set_.down.bytes(), 4096); }
  bool is_resident(int expert) const { return records_[checked(expert)] != nullptr; }

  void place(int expert, const ExpertBuffer& buffer, size_t slot) {
    require(buffer.record_bytes == record_bytes(),
            "a record takes " + std::to_string(record_bytes()) + " bytes, a slot has " +
                std::to_string(buffer.record_bytes));
    const size_t at = checked(expert);
    records_[at] = buffer.at(slot);
    owners_[at] = buffer.memory;
  }
  // The record of an expert that is in memory.
  uint8_t* record(int expert) const {
    const size_t at = checked(expert);
    require(records_[at] != nullptr, "expert " + std::to_string(expert) + " is not in memory");
    return records_[at];
  }
  void remove(int expert) {
    const size_t at = checked(expert);
    records_[at] = nullptr;
    owners_[at] = nullptr;
  }

  // What is added to the products, of all experts, which need not be in memory.
  void add_biases(const In<float, 2>& gate, const In<float, 2>& up, const In<float, 2>& down) {
    const auto count = static_cast<size_t>(set_.count);
    for (const auto* each : {&gate, &up})
      require(each->shape(0) == count && static_cast<int64_t>(each->shape(1)) == set_.intermediate,
              "the biases of gate and up must have a row an expert, as wide as it is inside");
    require(down.shape(0) == count && static_cast<int64_t>(down.shape(1)) == set_.hidden,
            "the biases of down must have a row an expert, as wide as the hidden states");
    auto all = std::make_shared<std::vector<float>>();
    for (const auto* each : {&gate, &up, &down})
      all->insert(all->end(), each->data(), each->data() + each->size());
    set_.gate_bias = all->data();
    set_.up_bias = set_.gate_bias + gate.size();
    set_.down_bias = set_.up_bias + up.size();
    biases_ = std::move(all);
  }
  void clamp(float alpha, float limit) {
    require(limit > 0, "the limit must be above 0");
    set_.activation = {Gating::Clamped, alpha, limit};
  }
  void limit(float most) {
    require(most > 0, "the limit must be above 0");
    set_.activation = {Gating::Limited, 1, most};
  }
  void use_gelu() { set_.activation = {Gating::Gelu}; }

  // From here on, the squares of what they are multiplied with are added up, expert by expert.
  void watch() {
    const auto count = static_cast<size_t>(set_.count);
    watched_ = std::make_shared<Watched>(count, set_.hidden, set_.intermediate);
    set_.inner_squares = watched_->inner.data();
  }
  nb::tuple seen() const {
    require(watched_ != nullptr, "nobody watches these experts");
    auto rows = fresh<int64_t>({watched_->rows.size()});
    std::copy(watched_->rows.begin(), watched_->rows.end(), rows.data());
    return nb::make_tuple(
        copied(watched_->inputs, rows.size(), static_cast<size_t>(set_.hidden)),
        copied(watched_->inner, rows.size(), static_cast<size_t>(set_.intermediate)), rows);
  }
  // Adds a call's inputs, x of each pair's row, to the sums; chosen: the experts that count.
  void see(const float* x, const int32_t* ids, int64_t pairs, int64_t k, const uint8_t* chosen,
           int threads) const {
    if (!watched_) return;
    std::vector<std::vector<int64_t>> rows(static_cast<size_t>(set_.count));
    for (int64_t pair = 0; pair < pairs; ++pair)
      if (!chosen || chosen[ids[pair]]) rows[static_cast<size_t>(ids[pair])].push_back(pair / k);
    for (size_t expert = 0; expert < rows.size(); ++expert) {
      const auto count = static_cast<int64_t>(rows[expert].size());
      watched_->rows[expert] += count;
      add_squares(
          count, set_.hidden, threads,
          watched_->inputs.data() + expert * static_cast<size_t>(set_.hidden),
          [&](int64_t i) { return x + rows[expert][static_cast<size_t>(i)] * set_.hidden; });
    }
  }
  bool is_watched() const { return watched_ != nullptr; }

  // A part of an expert that is in memory, and what keeps that memory.
  Packed part(const std::string& name, int expert) const {
    require(name == "gate" || name == "up" || name == "down",
            "an expert's parts are gate, up and down");
    require(is_resident(expert), "expert " + std::to_string(expert) + " is not in memory");
    const ExpertSet set = at();
    return name == "gate" ? set.gate_of(expert)
           : name == "up" ? set.up_of(expert)
                          : set.down_of(expert);
  }
  std::shared_ptr<const void> owner(int expert) const { return owners_[checked(expert)]; }
  void fill(const std::string& name, int expert, int64_t first_row, const In<uint8_t, 2>& raw,
            int threads) {
    check_threads(threads);
    const Packed p = part(name, expert);
    check_source(p, first_row, raw);
    const auto kept = owner(expert);
    const GilReleased release;
    pack_rows(p, first_row, static_cast<int64_t>(raw.shape(0)), raw.data(), threads);
  }

  // The set of one call: what is placed or removed meanwhile does not change it.
  struct Call {
    ExpertSet set;
    std::vector<const uint8_t*> records;
    std::vector<std::shared_ptr<const void>> owners;
  };
  // Of a call that uses these experts, which must be in memory.
  Call call(const int32_t* ids, size_t count) const {
    Call result{set_, {records_.begin(), records_.end()}, {biases_}};
    for (size_t i = 0; i < count; ++i) {
      const int expert = ids[i];
      require(expert >= 0 && expert < set_.count, "expert id out of range");
      require(records_[static_cast<size_t>(expert)] != nullptr,
              "expert " + std::to_string(expert) + " is not in memory");
      const auto& owner = owners_[static_cast<size_t>(expert)];
      if (result.owners.empty() || result.owners.back() != owner) result.owners.push_back(owner);
    }
    result.set.records = result.records.data();
    return result;
  }

 private:
  static size_t checked_count(int count) {
    require(count > 0 && count <= 65536, "between 1 and 65,536 experts");
    return static_cast<size_t>(count);
  }
  size_t checked(int expert) const {
    require(expert >= 0 && expert < set_.count, "no expert " + std::to_string(expert));
    return static_cast<size_t>(expert);
  }
  ExpertSet at() const {
    ExpertSet set = set_;
    set.records = records_.data();
    return set;
  }

  struct Watched {
    std::vector<double> inputs, inner;  // sums of squares by column, expert by expert
    std::vector<int64_t> rows;
    Watched(size_t count, int64_t hidden, int64_t intermediate)
        : inputs(count * static_cast<size_t>(hidden)),
          inner(count * static_cast<size_t>(intermediate)),
          rows(count) {}
  };

  ExpertSet set_;
  std::shared_ptr<Watched> watched_;  // null: nobody asks
  std::vector<uint8_t*> records_;
  std::vector<std::shared_ptr<const void>> owners_;
  std::shared_ptr<const std::vector<float>> biases_;
};

}  // namespace dure

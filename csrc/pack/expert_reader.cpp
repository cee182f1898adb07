#include "pack/expert_reader.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <new>
#include <utility>

#include "pack/finite.h"

namespace dure {

namespace {

// A piece: large beside what a request costs, small enough that several threads share an expert of
// many megabytes, and that a guess under way delays what is needed by little.
constexpr size_t kPieceBytes = size_t{1} << 20;

}  // namespace

ExpertReader::ExpertReader(int threads) : home_(getpid()) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

ExpertReader::~ExpertReader() {
  if (getpid() != home_) {
    for (auto& thread : threads_) thread.detach();
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wanted_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void ExpertReader::add_packed(std::shared_ptr<const DirectFile> file, uint64_t offset,
                              const Packed& target, Pieces& pieces) {
  const size_t row_bytes = source_row_bytes(target.type, target.cols);
  const int64_t step =
      std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / (row_bytes * kPanel))) * kPanel;
  for (int64_t first = 0; first < target.rows; first += step) {
    Piece piece;
    piece.file = file;
    piece.target = target;
    piece.first_row = first;
    piece.rows = std::min(step, target.rows - first);
    piece.offset = offset + static_cast<uint64_t>(first) * row_bytes;
    piece.bytes = static_cast<uint64_t>(piece.rows) * row_bytes;
    pieces.push_back(std::move(piece));
  }
}

void ExpertReader::add_raw(std::shared_ptr<const DirectFile> file, uint64_t offset, uint64_t bytes,
                           uint8_t* raw, Pieces& pieces) {
  for (uint64_t first = 0; first < bytes; first += kPieceBytes) {
    Piece piece;
    piece.file = file;
    piece.offset = offset + first;
    piece.bytes = std::min<uint64_t>(kPieceBytes, bytes - first);
    piece.raw = raw + first;
    pieces.push_back(std::move(piece));
  }
}

void ExpertReader::submit(uint64_t tag, Pieces pieces, std::shared_ptr<const void> owner,
                          Priority priority) {
  {
    const std::lock_guard lock(mutex_);
    Record& record = records_[tag];
    record.pieces = std::move(pieces);
    record.owner = std::move(owner);
    record.priority = priority;
    record.result.tag = tag;
    queues_[priority].push_back(tag);
  }
  wanted_.notify_one();  // which wakes the next: whoever asks has other work
}

void ExpertReader::raise(uint64_t tag, Priority priority) {
  const std::lock_guard lock(mutex_);
  const auto found = records_.find(tag);
  if (found == records_.end() || found->second.priority <= priority) return;
  auto& old = queues_[found->second.priority];
  old.erase(std::remove(old.begin(), old.end(), tag), old.end());
  found->second.priority = priority;
  if (found->second.begun < found->second.pieces.size()) queues_[priority].push_back(tag);
}

bool ExpertReader::cancel(uint64_t tag) {
  const std::lock_guard lock(mutex_);
  const auto found = records_.find(tag);
  if (found == records_.end() || found->second.begun) return false;
  auto& queue = queues_[found->second.priority];
  queue.erase(std::remove(queue.begin(), queue.end(), tag), queue.end());
  records_.erase(found);
  return true;
}

void ExpertReader::finish(uint64_t tag, int error) {
  {
    const std::lock_guard lock(mutex_);
    Finished made;
    made.tag = tag;
    made.error = error;
    out_.push_back(made);
  }
  finished_.notify_all();
}

std::vector<ExpertReader::Finished> ExpertReader::take(double seconds) {
  std::unique_lock lock(mutex_);
  if (out_.empty() && seconds > 0)
    finished_.wait_for(lock, std::chrono::duration<double>(seconds),
                       [this] { return !out_.empty(); });
  return std::exchange(out_, {});
}

uint64_t ExpertReader::read_bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

uint64_t ExpertReader::next() const {
  for (const auto& queue : queues_)
    if (!queue.empty()) return queue.front();
  return 0;
}

void ExpertReader::work() {
  BounceBuffer bounce;
  std::unique_lock lock(mutex_);
  for (;;) {
    uint64_t tag = 0;
    wanted_.wait(lock, [&] { return closing_ || (tag = next()) != 0; });
    if (closing_) return;
    Record& record = records_[tag];  // stays where it is until its last piece is done
    const Piece piece = record.pieces[record.begun++];
    if (record.begun == record.pieces.size()) queues_[record.priority].pop_front();
    if (next() != 0) wanted_.notify_one();
    const bool hopeless = record.result.error != 0;
    lock.unlock();
    const int error = hopeless ? 0 : read(piece, bounce);
    lock.lock();
    if (!hopeless) bytes_ += piece.bytes;
    if (error && !record.result.error) record.result = {tag, error, piece.file.get(), piece.offset};
    if (++record.done < record.pieces.size()) continue;
    out_.push_back(record.result);
    records_.erase(tag);
    finished_.notify_all();
  }
}

int ExpertReader::read(const Piece& piece, BounceBuffer& bounce) {
  uint8_t* at = piece.raw;
  try {
    if (!at) at = bounce.take(piece.bytes);
  } catch (const std::bad_alloc&) { return kNoMemory; }
  if (const int error = piece.file->fetch(piece.offset, piece.bytes, &at)) return error;
  if (!piece.file->unchanged()) return kChanged;
  if (piece.raw) return 0;
  if (!all_finite(piece.target.type, at, piece.bytes)) return kNotFinite;
  pack_panels(piece.target, piece.first_row, piece.rows, at);
  return 0;
}

}  // namespace dure

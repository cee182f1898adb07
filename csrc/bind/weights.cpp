// What Python sees of packed weights: matrices, experts, the memory of their records, and what
// packs them. Checks, as in bind/module.cpp.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <system_error>

#include "bind/experts.h"
#include "bind/rows.h"
#include "pack/expert_reader.h"
#include "pack/filepacker.h"

namespace dure {

namespace {

// A file as Python holds it. Threads that read share `file` alone: the last of them to let it go
// must not need Python's lock.
struct SharedFile {
  std::shared_ptr<DirectFile> file;
  explicit SharedFile(int descriptor) {
    try {
      file = std::make_shared<DirectFile>(descriptor);
    } catch (const std::system_error& error) {
      errno = error.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
      throw nb::python_error();
    }
  }
};

// Returns FilePacker::run's code; what `report` raises goes on to the caller.
int run_packer(FilePacker& packer, int descriptor, bool direct, int threads, double seconds,
               const nb::object& report) {
  check_threads(threads);
  const SharedFile shared(descriptor);
  std::exception_ptr raised;
  const auto tell = [&](uint64_t done) {
    const GilAcquired acquire;
    try {
      report(done);
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
    } catch (...) { raised = std::current_exception(); }
    return raised == nullptr;
  };
  int result = 0;
  {
    const GilReleased release;
    result = packer.run(*shared.file, direct, threads, seconds, tell);
  }
  if (raised) std::rethrow_exception(raised);
  return result;
}

// A record as Python may read and write it; it keeps the memory.
Result<uint8_t> record_view(uint8_t* data, size_t bytes, std::shared_ptr<const void> memory) {
  auto* owner = new std::shared_ptr<const void>(std::move(memory));
  return Result<uint8_t>(data, {bytes}, nb::capsule(owner, [](void* p) noexcept {
                           delete static_cast<std::shared_ptr<const void>*>(p);
                         }));
}

ExpertReader::Priority priority_of(int priority) {
  require(priority >= 0 && priority < ExpertReader::kPriorities, "no such priority");
  return static_cast<ExpertReader::Priority>(priority);
}

// An expert that has been placed, from its three parts in source blocks.
void submit_parts(ExpertReader& reader, uint64_t tag, const Experts& set, int expert,
                  const std::vector<std::pair<const SharedFile*, uint64_t>>& parts, int priority) {
  require(tag != 0 && parts.size() == 3, "a tag, and gate, up and down");
  ExpertReader::Pieces pieces;
  const char* const names[] = {"gate", "up", "down"};
  for (size_t i = 0; i < parts.size(); ++i)
    ExpertReader::add_packed(parts[i].first->file, parts[i].second, set.part(names[i], expert),
                             pieces);
  reader.submit(tag, std::move(pieces), set.owner(expert), priority_of(priority));
}

// … from its record.
void submit_record(ExpertReader& reader, uint64_t tag, const Experts& set, int expert,
                   const SharedFile& shared, uint64_t offset, int priority) {
  require(tag != 0 && offset % kPage == 0, "a tag, and an offset of whole pages");
  ExpertReader::Pieces pieces;
  ExpertReader::add_raw(shared.file, offset, set.record_bytes(), set.record(expert), pieces);
  reader.submit(tag, std::move(pieces), set.owner(expert), priority_of(priority));
}

nb::list take_finished(ExpertReader& reader, double seconds) {
  std::vector<ExpertReader::Finished> finished;
  {
    const GilReleased release;
    finished = reader.take(seconds);
  }
  nb::list result;
  for (const auto& each : finished)
    result.append(nb::make_tuple(each.tag, each.error, each.offset));
  return result;
}

// Bytes of a file past the page cache.
Result<uint8_t> read_direct(const SharedFile& shared, uint64_t offset, uint64_t bytes) {
  auto out = fresh<uint8_t>({bytes});
  int error = 0;
  {
    const GilReleased release;
    BounceBuffer bounce;
    uint8_t* at = bounce.take(bytes);
    error = shared.file->fetch(offset, bytes, &at);
    if (!error) std::memcpy(out.data(), at, bytes);
  }
  if (error) {
    errno = error;
    if (error == DirectFile::kEnded) PyErr_SetNone(PyExc_EOFError);
    else PyErr_SetFromErrno(PyExc_OSError);
    throw nb::python_error();
  }
  return out;
}

}  // namespace

void bind_weights(nb::module_& m) {
  m.def("packed_bytes", [](const std::string& dtype, int64_t rows, int64_t cols) {
    return describe(dtype, rows, cols).bytes();
  });

  nb::class_<Matrix>(m, "Matrix")
      .def(nb::init<const std::string&, int64_t, int64_t>())
      .def("fill", &Matrix::fill, any, strict, any)
      .def("watch", &Matrix::watch)
      .def("seen", &Matrix::seen)
      .def("row_values", &Matrix::row_values, strict, any)
      .def_prop_ro("dtype", [](const Matrix& w) { return sizes_of(w.view.type).name; })
      .def_prop_ro("rows", [](const Matrix& w) { return w.view.rows; })
      .def_prop_ro("cols", [](const Matrix& w) { return w.view.cols; })
      .def_prop_ro("nbytes", [](const Matrix& w) { return w.view.bytes(); });

  nb::class_<ExpertBuffer>(m, "ExpertBuffer")
      .def(nb::init<size_t, size_t>())
      .def("slot", [](const ExpertBuffer& b,
                      size_t slot) { return record_view(b.at(slot), b.record_bytes, b.memory); })
      .def("resize", &ExpertBuffer::resize)
      .def_prop_ro("slots", [](const ExpertBuffer& b) { return b.slots; })
      .def_prop_ro("record_bytes", [](const ExpertBuffer& b) { return b.record_bytes; });

  nb::class_<Experts>(m, "Experts")
      .def(nb::init<int, int64_t, int64_t, const std::string&, const std::string&,
                    const std::string&, bool>())
      .def("fill", &Experts::fill, any, any, any, strict, any)
      .def("place", &Experts::place)
      .def("remove", &Experts::remove)
      .def("is_resident", &Experts::is_resident)
      .def("add_biases", &Experts::add_biases, strict, strict, strict)
      .def("clamp", &Experts::clamp)
      .def("limit", &Experts::limit)
      .def("use_gelu", &Experts::use_gelu)
      .def("watch", &Experts::watch)
      .def("seen", &Experts::seen)
      .def("record",
           [](const Experts& e, int expert) {
             return record_view(e.record(expert), e.record_bytes(), e.owner(expert));
           })
      .def_prop_ro("count", [](const Experts& e) { return e.shape().count; })
      .def_prop_ro("record_bytes", &Experts::record_bytes);

  nb::class_<SharedFile>(m, "DirectFile")
      .def(nb::init<int>())
      .def("read", &read_direct)
      .def("unchanged", [](const SharedFile& f) { return f.file->unchanged(); })
      .def_prop_ro("direct", [](const SharedFile& f) { return f.file->direct(); });

  nb::class_<ExpertReader>(m, "ExpertReader")
      .def(nb::init<int>())
      .def("submit_parts", &submit_parts)
      .def("submit_record", &submit_record)
      .def("raise_to",
           [](ExpertReader& r, uint64_t tag, int priority) { r.raise(tag, priority_of(priority)); })
      .def("cancel", &ExpertReader::cancel)
      .def("finish", &ExpertReader::finish)
      .def("take", &take_finished)
      .def_prop_ro("read_bytes", &ExpertReader::read_bytes);

  nb::class_<FilePacker>(m, "FilePacker")
      .def(nb::init<>())
      .def(
          "add_matrix",
          [](FilePacker& f, const Matrix& w, uint64_t offset) { f.add(w.view, offset); },
          nb::keep_alive<1, 2>())
      .def("add_part",
           [](FilePacker& f, const Experts& e, const std::string& part, int expert,
              uint64_t offset) { f.add(e.part(part, expert), offset, e.owner(expert)); })
      .def("run", &run_packer)
      .def_prop_ro("not_finite", &FilePacker::not_finite);

  m.def(
      "quantize_blocks",
      [](const std::string& dtype, const In<float, 2>& x, const Vector& importance, int threads) {
        check_threads(threads);
        const Type type = type_from_name(dtype);
        constexpr Type kTypes[] = {Type::Q4_0, Type::Q5_0, Type::Q5_1,   Type::Q8_0,   Type::Q4_K,
                                   Type::Q5_K, Type::Q6_K, Type::IQ4_NL, Type::IQ4_XS, Type::MXFP4};
        require(std::find(std::begin(kTypes), std::end(kTypes), type) != std::end(kTypes),
                "floats are quantised to Q4_0, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS "
                "and MXFP4, not to " +
                    dtype);
        require(!importance || importance->shape(0) == x.shape(1),
                "the importance must have one entry a column");
        require(x.shape(1) % sizes_of(type).source_columns == 0,
                dtype + " needs columns in multiples of " +
                    std::to_string(sizes_of(type).source_columns));
        auto out =
            fresh<uint8_t>({x.shape(0), source_row_bytes(type, static_cast<int64_t>(x.shape(1)))});
        bool fits;
        {
          const GilReleased release;
          fits = ops().quantize_blocks(type, x.data(), static_cast<int64_t>(x.size()),
                                       importance ? importance->data() : nullptr,
                                       static_cast<int64_t>(x.shape(1)), out.data(), threads);
        }
        require(fits, "a weight is not finite, or beyond what " + dtype + " can hold");
        return out;
      },
      any, strict, nb::arg().noconvert().none(), any);
}

}  // namespace dure

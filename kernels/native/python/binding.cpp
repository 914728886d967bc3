// The Python module `lram_export._native`: models and states of lram.h as objects, arrays as buffers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "handles.h"
#include "kernels/kernels.h"
#include "lram.h"
#include "step.h"

namespace nb = nanobind;

namespace {

// ValueError is the caller's error, MemoryError the machine's, OverflowError a step's, RuntimeError the artifact's.
void check(lram_status status) {
  switch (status) {
    case LRAM_OK:
      return;
    case LRAM_ERROR_ARGUMENT:
    case LRAM_ERROR_INPUT:
    case LRAM_ERROR_STATE:
      throw nb::value_error(lram_last_error());
    case LRAM_ERROR_MEMORY:
      PyErr_SetString(PyExc_MemoryError, lram_last_error());
      throw nb::python_error();
    case LRAM_ERROR_OVERFLOW:
      PyErr_SetString(PyExc_OverflowError, lram_last_error());
      throw nb::python_error();
    default:
      throw std::runtime_error(lram_last_error());
  }
}

// Other threads of Python run meanwhile. What failed is told to this thread, whatever they do.
template <class Call>
lram_status unlocked(Call call) {
  const nb::gil_scoped_release released;
  return call();
}

using Floats = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using ConstFloats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using AnyConst = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using Any = nb::ndarray<nb::c_contig, nb::device::cpu>;

nb::tuple shape_of(int rank, const std::size_t* extents) {
  nb::list shape;
  for (int axis = 0; axis < rank; ++axis) shape.append(extents[axis]);
  return nb::tuple(shape);
}

const char* dtype_of(lram_element element) {
  return element == LRAM_FLOAT32 ? "float32" : element == LRAM_UINT8 ? "uint8" : "int64";
}

nb::tuple sizes(const lram_memory& memory) { return nb::make_tuple(memory.bytes, memory.huge_bytes); }

constexpr const char* kStateFormats[] = {"float32", "lazy-fp16"};  // as lram_state_format counts them

lram_state_format state_format_of(const std::string& name) {
  const auto* const found = std::find(std::begin(kStateFormats), std::end(kStateFormats), name);
  if (found == std::end(kStateFormats))
    throw nb::value_error(("state_format: expected float32 or lazy-fp16, got " + name).c_str());
  return static_cast<lram_state_format>(found - std::begin(kStateFormats));
}

struct Model {
  std::shared_ptr<lram_model> handle;

  Model(const std::string& path, int threads, const std::vector<int>& cpus, int spin_microseconds, bool lock_memory,
        const std::string& state_format, const std::string& huge_pages, bool verify) {
    lram_options options;
    lram_options_init(&options);
    options.threads = threads;
    options.cpus = cpus.empty() ? nullptr : cpus.data();
    options.cpu_count = static_cast<int>(cpus.size());
    options.spin_microseconds = spin_microseconds;
    options.lock_memory = lock_memory ? 1 : 0;
    if (!state_format.empty()) options.state_format = state_format_of(state_format);
    const std::vector<std::string> huge = {"0", "state", "all"};  // as lram_huge_pages counts them
    const auto asked = std::find(huge.begin(), huge.end(), huge_pages);
    if (asked == huge.end()) throw nb::value_error(("huge_pages: expected 0, state or all, got " + huge_pages).c_str());
    options.huge_pages = static_cast<lram_huge_pages>(asked - huge.begin());
    options.verify = verify ? 1 : 0;
    options.safety = 0;  // Python has its own, around every target
    lram_model* opened = nullptr;
    check(unlocked([&] { return lram_open(path.c_str(), &options, &opened); }));
    handle = std::shared_ptr<lram_model>(opened, lram_close);
  }

  lram_description description() const {
    lram_description found;
    check(lram_describe(handle.get(), &found));
    return found;
  }

  // A number, or a copy of the values one by one.
  static nb::object initial(const lram_tensor& tensor) {
    if (tensor.initial_values == nullptr) return nb::cast(tensor.initial);
    const std::vector<std::size_t> shape(tensor.extents, tensor.extents + tensor.rank);
    const nb::ndarray<nb::numpy, const float> values(tensor.initial_values, shape.size(), shape.data());
    return nb::cast(values, nb::rv_policy::copy);
  }

  nb::list state_tensors() const {
    nb::list tensors;
    for (std::size_t i = 0; i < description().state_tensors; ++i) {
      lram_tensor tensor;
      check(lram_state_tensor(handle.get(), i, &tensor));
      tensors.append(nb::make_tuple(std::string(tensor.name), shape_of(tensor.rank, tensor.extents), initial(tensor)));
    }
    return tensors;
  }

  using Describe = lram_status (*)(const lram_model*, std::size_t, lram_field*);
  nb::list fields(std::size_t count, Describe describe) const {
    nb::list found;
    for (std::size_t i = 0; i < count; ++i) {
      lram_field field;
      check(describe(handle.get(), i, &field));
      found.append(nb::make_tuple(std::string(field.name), shape_of(field.rank, field.extents),
                                  std::string(dtype_of(field.element))));
    }
    return found;
  }
  // A number, or None where it is not known.
  static nb::object known(float number) { return std::isfinite(number) ? nb::cast(number) : nb::none(); }

  // What the artifact says of fields: most_clamps, and the facts of every element, or of all at once, by name.
  static nb::dict facts(const std::vector<lram::Field>& fields) {
    nb::dict found;
    for (const lram::Field& field : fields) {
      if (field.facts == nullptr) continue;
      nb::list elements;
      for (std::size_t i = 0; i < field.fact_count; ++i) {
        const lram::ElementFacts& of = field.facts[i];
        elements.append(nb::make_tuple(std::string(of.name), std::string(of.unit), known(of.low), known(of.high),
                                       known(of.most_change), known(of.safe)));
      }
      found[field.name.c_str()] = nb::make_tuple(field.most_clamps, elements);
    }
    return found;
  }
  nb::tuple interface() const {
    const lram::Engine& engine = *handle->engine;
    return nb::make_tuple(engine.rate(), facts(engine.inputs()), facts(engine.outputs()));
  }

  nb::tuple pages() const {
    lram_memory memory;
    check(lram_model_memory(handle.get(), &memory));
    return sizes(memory);
  }

  nb::list inputs() const { return fields(description().inputs, lram_input); }
  nb::list outputs() const { return fields(description().outputs, lram_output); }
};

// The memory of an array, as long as this has it.
class View {
 public:
  View() = default;
  View(View&& other) noexcept : view_(other.view_), held_(std::exchange(other.held_, false)) {}
  View(const View&) = delete;
  View& operator=(const View&) = delete;
  ~View() { release(); }

  // Whether there is an array whose elements lie one behind the other.
  bool acquire(PyObject* array) {
    held_ = PyObject_GetBuffer(array, &view_, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) == 0;
    if (!held_) PyErr_Clear();
    return held_;
  }
  void release() {
    if (held_) PyBuffer_Release(&view_);
    held_ = false;
  }
  const Py_buffer& operator*() const { return view_; }

 private:
  Py_buffer view_ = {};
  bool held_ = false;
};

// An input that is bound, and what may be copied there.
class Target {
 public:
  Target(nb::handle array, nb::handle limit) : type_(Py_TYPE(array.ptr())) {
    if (!own_.acquire(array.ptr())) throw nb::value_error("inputs: expected contiguous arrays");
    if (limit.is_none() || std::strcmp((*own_).format, "f") != 0) return;
    const auto exact = nb::cast<double>(limit);
    limit_ = static_cast<float>(exact);
    if (static_cast<double>(limit_) > exact) limit_ = std::nextafterf(limit_, 0);
  }

  // Whether an array may be copied here; it is held until `end`.
  bool takes(PyObject* array) {
    if (Py_TYPE(array) != type_ || !given_.acquire(array)) return false;
    const Py_buffer& own = *own_;
    const Py_buffer& given = *given_;
    return given.ndim == own.ndim && std::equal(own.shape, own.shape + own.ndim, given.shape) &&
           std::strcmp(given.format, own.format) == 0 && within_limit(given);
  }
  void end(bool copy) {
    if (copy) std::memmove((*own_).buf, (*given_).buf, static_cast<std::size_t>((*own_).len));
    given_.release();
  }

 private:
  // What has no limit of its own the engine looks at.
  bool within_limit(const Py_buffer& given) const {
    return std::isnan(limit_) || lram::within(static_cast<const float*>(given.buf),
                                              static_cast<int>(given.len / Py_ssize_t{sizeof(float)}), limit_);
  }

  PyTypeObject* type_;
  View own_;
  View given_;
  float limit_ = std::nanf("");
};

struct State {
  std::shared_ptr<lram_model> model;  // a model lives as long as its states
  std::shared_ptr<lram_state> handle;
  // the addresses of bound arrays, and what keeps them alive
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  std::vector<nb::object> bound;
  std::vector<Target> targets;

  State(const Model& owner, int batch) : model(owner.handle) {
    lram_state* created = nullptr;
    check(unlocked([&] { return lram_state_create(model.get(), batch, &created); }));
    handle = std::shared_ptr<lram_state>(created, lram_state_free);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  const lram::Episodes& inner() const { return *handle->episodes; }

  // An array of a field, which stays where it is.
  template <class Array>
  Array array_of(const lram::Field& field, const nb::handle& given) const {
    Array array;
    if (!nb::try_cast(given, array, false))
      throw nb::value_error((field.name + ": expected a contiguous array that may be used as it is").c_str());
    const std::size_t expected =
        static_cast<std::size_t>(inner().batch()) * field.size() * lram::element_bytes(field.element);
    if (array.nbytes() != expected)
      throw nb::value_error(
          (field.name + ": expected " + std::to_string(expected) + " bytes, got " + std::to_string(array.nbytes()))
              .c_str());
    return array;
  }

  static void expect_count(const char* name, std::size_t expected, std::size_t count) {
    if (count != expected)
      throw nb::value_error(
          (std::string(name) + ": expected " + std::to_string(expected) + " arrays, got " + std::to_string(count))
              .c_str());
  }

  // Arrays that stay where they are, in the order of the model's fields; steps read and write them. None: an input that
  // a step does not read. `limits`: the largest magnitude of each input; None: of one that has none of its own.
  void bind(const nb::list& given, const nb::list& wanted, const nb::list& limits) {
    const lram::Engine& engine = *model->engine;
    expect_count("inputs", engine.inputs().size(), given.size());
    expect_count("outputs", engine.outputs().size(), wanted.size());
    if (limits.size() > 0) expect_count("limits", given.size(), limits.size());
    std::vector<const void*> read;
    std::vector<void*> written;
    for (std::size_t i = 0; i < given.size(); ++i)
      read.push_back(given[i].is_none() ? nullptr : array_of<AnyConst>(engine.inputs()[i], given[i]).data());
    for (std::size_t i = 0; i < wanted.size(); ++i)
      written.push_back(array_of<Any>(engine.outputs()[i], wanted[i]).data());
    inputs = std::move(read);
    outputs = std::move(written);
    bound.clear();
    for (const nb::list* arrays : {&given, &wanted})
      for (const nb::handle array : *arrays) bound.push_back(nb::borrow(array));
    targets.clear();
    targets.reserve(limits.size());
    for (std::size_t i = 0; i < limits.size(); ++i) targets.emplace_back(given[i], limits[i]);
  }

  // Copies inputs to where they are bound, and steps. False, and nothing is done, unless each is an array of numpy's
  // own type, of the bound one's shape and type, with nothing beyond its limit: the caller knows what to say of others.
  bool step_with(const nb::tuple& values) {
    if (values.size() != targets.size()) return false;
    bool plain = true;
    for (std::size_t i = 0; plain && i < targets.size(); ++i) plain = targets[i].takes(values[i].ptr());
    for (Target& target : targets) target.end(plain);
    if (plain) step();
    return plain;
  }

  void step() {
    check(unlocked(
        [&] { return lram_step_fields(handle.get(), inputs.data(), inputs.size(), outputs.data(), outputs.size()); }));
  }

  // A step of some rows, ascending: the first of the bound inputs and outputs are theirs, one after the other.
  void step_rows(const std::vector<int>& rows) {
    check(unlocked([&] {
      return lram_step_rows(handle.get(), rows.data(), rows.size(), inputs.data(), inputs.size(), outputs.data(),
                            outputs.size());
    }));
  }

  void settle() {
    check(unlocked([&] { return lram_settle(handle.get()); }));
  }

  // Mean of the threads' seconds in each stage since profile(), by name.
  void profile() { model->engine->pool().profile(); }
  nb::dict stages() const {
    const char* const names[lram::kStages] = {"dense", "memory", "other", "wait", "leftover"};
    const std::vector<lram::StageClock>& clocks = model->engine->pool().stage_clocks();
    nb::dict found;
    for (std::size_t stage = 0; stage < lram::kStages; ++stage) {
      double nanoseconds = 0;
      for (const lram::StageClock& clock : clocks) nanoseconds += clock.spent(static_cast<lram::Stage>(stage));
      found[names[stage]] = 1e-9 * nanoseconds / static_cast<double>(clocks.size());
    }
    return found;
  }

  void save(const Floats& values) const {
    check(unlocked([&] { return lram_state_save(handle.get(), values.data(), values.size()); }));
  }
  void load(const ConstFloats& values) {
    check(unlocked([&] { return lram_state_load(handle.get(), values.data(), values.size()); }));
  }
  void save_rows(const std::vector<int>& rows, const Floats& values) const {
    check(unlocked(
        [&] { return lram_state_save_rows(handle.get(), rows.data(), rows.size(), values.data(), values.size()); }));
  }
  void load_rows(const std::vector<int>& rows, const ConstFloats& values) {
    check(unlocked(
        [&] { return lram_state_load_rows(handle.get(), rows.data(), rows.size(), values.data(), values.size()); }));
  }
  void reset(const std::vector<int>& rows) { check(lram_state_reset(handle.get(), rows.data(), rows.size())); }
  std::size_t size() const { return inner().size(); }
  nb::tuple pages() const {
    lram_memory memory;
    check(lram_state_memory(handle.get(), &memory));
    return sizes(memory);
  }
};

nb::object memory(nb::handle_t<State> self) {
  const State& state = nb::cast<const State&>(self);
  const std::size_t shape[1] = {state.inner().memory_floats()};
  return nb::cast(nb::ndarray<nb::numpy, float>(state.inner().memory(), 1, shape, self));
}

std::string chosen_instruction_set() {
  try {
    return lram::choose_kernels().name;
  } catch (const std::runtime_error& error) {
    throw nb::value_error(error.what());
  }
}

nb::list instruction_sets() {
  int count = 0;
  const lram::Candidate* candidates = lram::candidates(&count);
  nb::list found;
  for (int i = 0; i < count; ++i)
    if (candidates[i].supported()) found.append(std::string(candidates[i].kernels->name));
  return found;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The native engine; see runtimes/native.py.";
  m.def("instruction_sets", instruction_sets, "Kernels this processor runs, best first.");
  m.def("chosen_instruction_set", chosen_instruction_set,
        "Kernels that models use; raises ValueError if LRAM_ISA names none.");
  m.attr("__version__") = lram_version();
  nb::class_<Model>(m, "Model")
      .def(nb::init<const std::string&, int, const std::vector<int>&, int, bool, const std::string&, const std::string&,
                    bool>(),
           nb::arg("path"), nb::kw_only(), nb::arg("threads"), nb::arg("cpus") = std::vector<int>(),
           nb::arg("spin_microseconds") = 200, nb::arg("lock_memory") = false, nb::arg("state_format") = "",
           nb::arg("huge_pages") = "state", nb::arg("verify") = true)
      .def_prop_ro("isa", [](const Model& model) { return std::string(model.description().isa); })
      .def_prop_ro("threads", [](const Model& model) { return model.description().threads; })
      .def_prop_ro("state_format", [](const Model& model) { return kStateFormats[model.description().state_format]; })
      .def_prop_ro("inputs", &Model::inputs)
      .def_prop_ro("outputs", &Model::outputs)
      .def_prop_ro("interface", &Model::interface, "Rate, and what is said of inputs and of outputs by name.")
      .def_prop_ro("name", [](const Model& model) { return std::string(model.description().name); })
      .def_prop_ro("source_sha256",
                   [](const Model& model) {
                     const lram_description about = model.description();
                     return nb::bytes(about.source_sha256, sizeof about.source_sha256);
                   })
      .def("pages", &Model::pages, "Bytes of the artifact in memory, and of them in huge pages.")
      .def("state_tensors", &Model::state_tensors);
  nb::class_<State>(m, "State")
      .def(nb::init<const Model&, int>(), nb::arg("model"), nb::arg("batch"))
      .def_prop_ro("size", &State::size)
      .def("pages", &State::pages, "Bytes that steps need, and of them in huge pages.")
      .def("memory", &memory, "The recurrent memory as it lies, float32; for tests.")
      .def("bind", &State::bind, nb::arg("inputs"), nb::arg("outputs"), nb::arg("limits") = nb::list())
      .def("step", &State::step)
      .def("step_with", &State::step_with, nb::arg("inputs"),
           "Copies inputs to the bound ones and steps; False, and does nothing, unless all are plainly alike.")
      .def("step_rows", &State::step_rows, nb::arg("rows"),
           "A step of some rows, ascending, whose inputs and outputs are the first of the bound arrays.")
      .def("settle", &State::settle)
      .def("profile", &State::profile, "From the next step on, take the time of every stage.")
      .def("stages", &State::stages, "Seconds in each stage since profile(), the mean of the threads.")
      .def("save", &State::save, nb::arg("values"))
      .def("load", &State::load, nb::arg("values"))
      .def("save_rows", &State::save_rows, nb::arg("rows"), nb::arg("values"))
      .def("load_rows", &State::load_rows, nb::arg("rows"), nb::arg("values"))
      .def("reset", &State::reset, nb::arg("rows"));
}

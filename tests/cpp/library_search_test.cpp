// Where the CUDA backend looks for cuBLASLt, and what it says of a library that is missing or damaged.
#include "library_search.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "check.h"
#include "vimrt/error.h"

namespace {

namespace fs = std::filesystem;
using vimrt::cuda::cublaslt_folders;
using vimrt::cuda::open_library;
using vimrt::cuda::wheel_folders;

// A folder of Python packages that goes when the test ends.
class Packages {
public:
    Packages() {
        std::string pattern = (fs::temp_directory_path() / "vimrt-packages-XXXXXX").string();
        path = ::mkdtemp(pattern.data());
    }
    ~Packages() { fs::remove_all(path); }
    Packages(const Packages&) = delete;
    Packages& operator=(const Packages&) = delete;

    std::string folder(const std::string& name) const {
        fs::create_directories(path / name);
        return (path / name).string();
    }

    fs::path path;
};

template <typename Work>
std::string message_of(Work work) {
    try {
        work();
    } catch (const vimrt::DeviceError& error) {
        return error.what();
    }
    return "";
}

bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}

// An environment variable while the test runs.
class Variable {
public:
    Variable(const char* name, const std::string& value) : name_(name) { ::setenv(name, value.c_str(), 1); }
    ~Variable() { ::unsetenv(name_); }
    Variable(const Variable&) = delete;
    Variable& operator=(const Variable&) = delete;

private:
    const char* name_;
};

}  // namespace

TEST(wheels_are_found_beside_the_package_newest_first) {
    const Packages packages;
    const std::string old = packages.folder("nvidia/cublas/lib");
    const std::string unified = packages.folder("nvidia/cu13/lib");
    const std::vector<std::string> found = wheel_folders(packages.path.string());
    CHECK_EQ(found.size(), 2U);
    CHECK_EQ(found[0], old);
    CHECK_EQ(found[1], unified);
    CHECK(wheel_folders(packages.path.string() + "/nothing").empty());
}

TEST(folders_are_tried_in_the_documented_order) {
    const Packages packages;
    const std::string wheel = packages.folder("nvidia/cu13/lib");
    const Variable chosen("VIMRT_CUBLASLT_PATH", "/chosen");
    const Variable home("CUDA_HOME", "/home/of/cuda");
    const auto folders = cublaslt_folders(13, {"/given"}, packages.folder("vimrt"));
    const std::vector<std::string> first{"/chosen", "/given", wheel, "/home/of/cuda/lib64"};
    CHECK(std::equal(first.begin(), first.end(), folders.begin()));
    CHECK(std::find(folders.begin(), folders.end(), "/usr/local/cuda-13/lib64") != folders.end());
}

TEST(a_library_that_is_nowhere_names_every_folder_and_the_command) {
    const std::string message = message_of([] {
        open_library("libnowhere.so.13", {"/first", "/second"}, "nvidia-cublas>=13,<14");
    });
    CHECK(contains(message, "libnowhere.so.13"));
    CHECK(contains(message, "/first, /second and on the loader's path"));
    CHECK(contains(message, "pip install \"nvidia-cublas>=13,<14\""));
    CHECK(contains(message, "device=\"cpu\""));
}

TEST(a_damaged_library_is_named_and_no_other_is_taken) {
    const Packages packages;
    const std::string folder = packages.folder("nvidia/cu13/lib");
    std::ofstream(folder + "/libdamaged.so.13").close();
    const auto message = message_of([&] { open_library("libdamaged.so.13", {"/first", folder}, "some-package"); });
    CHECK(contains(message, folder + "/libdamaged.so.13 cannot be loaded: "));
    CHECK(contains(message, "pip install --force-reinstall \"some-package\""));
}

TEST(the_chosen_folder_comes_before_what_is_loaded) {
    const Packages packages;
    const std::string folder = packages.folder("chosen");
    std::ofstream(folder + "/libm.so.6").close();
    CHECK(open_library("libm.so.6", {}, "libm") != nullptr);
    const Variable chosen("VIMRT_CUBLASLT_PATH", folder);
    CHECK(contains(message_of([] { open_library("libm.so.6", {}, "libm"); }), "libm.so.6 cannot be loaded"));
}

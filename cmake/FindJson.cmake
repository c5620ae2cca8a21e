# nlohmann-json, header only: from the system, or from its PyPI package (`pip install nlohmann-json`).
# Defines the target vimrt_json.
add_library(vimrt_json INTERFACE)

find_package(nlohmann_json 3.10 QUIET)
if(nlohmann_json_FOUND)
    target_link_libraries(vimrt_json INTERFACE nlohmann_json::nlohmann_json)
    message(STATUS "vimrt: JSON: nlohmann-json ${nlohmann_json_VERSION} of the system (${nlohmann_json_DIR})")
    return()
endif()

find_package(Python3 QUIET COMPONENTS Interpreter)
if(Python3_FOUND)
    execute_process(
        COMMAND "${Python3_EXECUTABLE}" -c
                "import importlib.metadata as m; d = m.distribution('nlohmann-json'); print(next(p.locate().parent.parent for p in d.files if p.name == 'json.hpp'))"
        OUTPUT_VARIABLE vimrt_json_include OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(vimrt_json_include AND EXISTS "${vimrt_json_include}/nlohmann/json.hpp")
    target_include_directories(vimrt_json SYSTEM INTERFACE "${vimrt_json_include}")
    message(STATUS "vimrt: JSON: nlohmann-json from its PyPI package (${vimrt_json_include})")
    return()
endif()

message(FATAL_ERROR "vimrt: nlohmann-json was not found. Install one of: apt install nlohmann-json3-dev, pip install nlohmann-json")

// What vimrt throws. Every message is one sentence that names what was given, what was expected and, where
// there is something to do, what to do.
#pragma once

#include <stdexcept>
#include <string>

#include "vimrt/export.h"

namespace vimrt {

// Base of all of them.
class VIMRT_API Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
    ~Error() override;
};

// A file that is no valid .vimrt file: truncated, corrupted, malicious or of a newer version.
class VIMRT_API FormatError : public Error {
public:
    using Error::Error;
    ~FormatError() override;
};

// An argument of the wrong shape, dtype, size or value. ValueError in Python.
class VIMRT_API InvalidArgument : public Error {
public:
    using Error::Error;
    ~InvalidArgument() override;
};

// More memory is needed than the limit, the host or the device has. MemoryError in Python.
class VIMRT_API OutOfMemory : public Error {
public:
    using Error::Error;
    ~OutOfMemory() override;
};

// A device that is missing, unsupported or failed.
class VIMRT_API DeviceError : public Error {
public:
    using Error::Error;
    ~DeviceError() override;
};

}  // namespace vimrt

// The destructors anchor the exceptions' vtables in libvimrt, so that they are caught across shared objects.
#include "vimrt/error.h"

namespace vimrt {

Error::~Error() = default;
FormatError::~FormatError() = default;
InvalidArgument::~InvalidArgument() = default;
OutOfMemory::~OutOfMemory() = default;
DeviceError::~DeviceError() = default;

}  // namespace vimrt

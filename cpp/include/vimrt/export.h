// Marks what libvimrt offers to its users; everything else stays hidden in the shared object.
#pragma once

#if defined(VIMRT_STATIC)
#define VIMRT_API
#elif defined(_WIN32)
#error "vimrt supports Linux; build there"
#else
#define VIMRT_API __attribute__((visibility("default")))
#endif

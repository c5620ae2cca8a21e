// Everything vimrt offers to C++.
#pragma once

#include "vimrt/engine.h"
#include "vimrt/error.h"
#include "vimrt/planner.h"
#include "vimrt/preprocess.h"
#include "vimrt/rates.h"
#include "vimrt/tensor.h"

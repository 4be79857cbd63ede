#include "vs_uring.h"

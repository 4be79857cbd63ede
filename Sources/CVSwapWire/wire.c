#include "vswap_wire.h"

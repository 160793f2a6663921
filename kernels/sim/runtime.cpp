// C++ state of the simulated device, and the functions through which src/device/gpu/sim/ reads and writes it.
#include "device.h"

namespace sim {
__thread Place place;
const Kernel* kernels = nullptr;  // constant-initialised, so it is set before other files register kernels

extern "C" const Kernel* upres_sim_kernels() { return kernels; }
extern "C" void upres_sim_place(const Place* p) { place = *p; }
extern "C" void upres_sim_thread(uint32_t x, uint32_t y, uint32_t z) { place.thread = {x, y, z}; }
}  // namespace sim

//! Module nn.

"""Networks that OpenVINO runs on the CPU: converted, quantized, kept and compiled."""

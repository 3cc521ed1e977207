"""What a simulated worker costs on this device, measured in pairs within one run."""

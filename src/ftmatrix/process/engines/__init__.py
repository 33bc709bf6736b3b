"""Where cells may run beside this machine's own processes."""

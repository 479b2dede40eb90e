"""Object stores on this machine, for tests: nothing here needs a network beyond the loopback interface."""

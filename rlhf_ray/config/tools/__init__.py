"""From files and command lines to a configuration: layers, overrides, help, secrets, stages."""

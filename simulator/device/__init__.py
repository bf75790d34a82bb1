"""What a device is: its types, its TOML file and the catalogue of profiles."""

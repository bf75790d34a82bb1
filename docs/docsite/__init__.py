"""What writes the documentation site: Sphinx extensions, generated pages, and the commands of the guides."""

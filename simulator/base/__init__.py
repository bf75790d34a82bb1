"""What every room stands on: units, errors, files, number formats, plug-ins, the console."""

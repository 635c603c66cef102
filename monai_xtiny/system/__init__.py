"""What every layer may use: files, config text, errors, devices, threads; no noun of ours."""

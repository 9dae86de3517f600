"""What every process stands on: settings, time, the database, errors, supervision, telemetry."""

"""The decoder loop over packed rows: layout, attention, ragged cache, policies, traces, attach."""

"""When and where: layouts and schedules, as pure data that never touches q, k or v."""

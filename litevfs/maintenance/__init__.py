"""Compaction, retention and their timetable."""

"""Trainings that are compared, the harness behind `wbc benchmark`: the study file, its runner, its report. It imports all of
`wbc_model` but `rendering`.
"""

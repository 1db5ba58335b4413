"""What is said: the schemas of requests and answers, the specimen, the site and its ranges, the differential, and problems. It
imports `wbc_model.core`.
"""

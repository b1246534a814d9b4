"""SSLAM as an upstream of s3prl: SUPERB, HEAR and ESPnet's `frontend: s3prl`."""

package store

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

type zapLogger = *zap.Logger

// zap returns a logger for etcd's code that writes errors to the Config's Logger.
func (c Config) zap() zapLogger {
	if c.Logger == nil {
		return zap.NewNop()
	}
	return zap.New(zapToSlog{c.Logger.With("component", "etcd")})
}

// zapToSlog is a zap core on a slog logger.
type zapToSlog struct{ log *slog.Logger }

func (z zapToSlog) Enabled(l zapcore.Level) bool { return l >= zapcore.ErrorLevel }

func (z zapToSlog) With(fields []zapcore.Field) zapcore.Core {
	return zapToSlog{z.log.With(attrs(fields)...)}
}

func (z zapToSlog) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if z.Enabled(e.Level) {
		return ce.AddCore(e, z)
	}
	return ce
}

func (z zapToSlog) Write(e zapcore.Entry, fields []zapcore.Field) error {
	z.log.Log(context.Background(), slog.LevelError, e.Message, attrs(fields)...)
	return nil
}

func (z zapToSlog) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	out := make([]any, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		out = append(out, slog.Any(k, v))
	}
	return out
}

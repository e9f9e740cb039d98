package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"time"
)

// sender puts messages into the queue.
type sender struct{ count atomic.Int64 }

func (s *sender) sent() int { return int(s.count.Load()) }

// report is the body of an SMS report (Dysmsapi: SmsReport).
type report struct {
	PhoneNumber string `json:"phone_number"`
	SendTime    string `json:"send_time"`
	ReportTime  string `json:"report_time"`
	Success     bool   `json:"success"`
	ErrCode     string `json:"err_code"`
	ErrMsg      string `json:"err_msg"`
	SMSSize     string `json:"sms_size"`
	BizID       string `json:"biz_id"`
	OutID       string `json:"out_id"`
}

// smsReport makes the n-th report; one in twenty is of a failure.
func smsReport(n int, now time.Time) report {
	const layout = "2006-01-02 15:04:05"
	r := report{
		PhoneNumber: fmt.Sprintf("1390000%04d", n%10000),
		SendTime:    now.Add(-3 * time.Second).Format(layout), ReportTime: now.Format(layout),
		Success: true, ErrCode: "DELIVERED", ErrMsg: "delivered", SMSSize: "1",
		BizID: fmt.Sprintf("%018d^0", n), OutID: fmt.Sprintf("order-%d", n),
	}
	if n%20 == 19 {
		r.Success, r.ErrCode, r.ErrMsg = false, "MOBILE_NOT_ON_SERVICE", "not on service"
	}
	return r
}

// send puts reports into the queue at the rate, a tenth of a second's worth at a time,
// until there are enough or ctx ends.
func (d *demo) send(ctx context.Context) error {
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	begun := time.Now()
	for d.cfg.Messages == 0 || d.sender.sent() < d.cfg.Messages {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		due := int(time.Since(begun).Seconds() * float64(d.cfg.Rate))
		if d.cfg.Messages > 0 {
			due = min(due, d.cfg.Messages)
		}
		for n := d.sender.sent(); n < due; n++ {
			body, err := json.Marshal(smsReport(n, time.Now()))
			if err != nil {
				return fmt.Errorf("write report: %w", err)
			}
			if _, err := d.emulator.SendBase64(d.queue, body); err != nil {
				return fmt.Errorf("send to the emulator: %w", err)
			}
			d.sender.count.Add(1)
		}
	}
	return nil
}
